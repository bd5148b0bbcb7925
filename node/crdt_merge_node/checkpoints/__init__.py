"""Models as people have them on disk: one safetensors file, or a directory of shards with an index.

``reading`` finds the tensors of either, ``writing`` makes the files again, byte for byte. The rest of the
node sees tensors only: how they are spread over files changes no contribution and no merge.
"""
