"""Public checkpoints (safetensors) to Flax trees and back, one readable key table per architecture.

files    what is read and what is refused: a file, a folder, shards, the Hub
table    the key tables' language: load and export with a full account
resize   position embeddings for another image size
vit, videomae, resnet, gpt2   an architecture each: its tables, `load`, `export`, `infer`
"""
