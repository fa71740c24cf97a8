"""Public checkpoints (safetensors) to Flax trees and back, one readable key table per architecture."""
