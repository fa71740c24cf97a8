"""Public checkpoints (safetensors) to Flax trees and back, one readable key table per architecture.

files    what is read and what is refused: a file, a folder, shards, the Hub
pickles  checkpoints of torch, where asked for: without torch, and without running what is in them
table    the key tables' language: load and export with a full account
resize   position embeddings for another image size
vit, swin, videomae, resnet, gpt2, bert, llama, clip, autoencoder, unet
         an architecture each: its tables, `load`, `export`, `infer`
"""
