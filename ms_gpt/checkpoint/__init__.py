"""Checkpoints as names and numpy arrays: Hugging Face folders, safetensors, ``.ckpt``, training state, conversion."""

from ms_gpt._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Checkpoint": "sources",
        "CheckpointError": "errors",
        "ConversionReport": "conversion",
        "LazyTensors": "tensors",
        "LoadReport": "keymap",
        "TensorInfo": "tensors",
        "architecture_name": "layouts",
        "convert": "conversion",
        "expected_shapes": "layouts",
        "head_of": "layouts",
        "hf_name": "keymap",
        "load_state": "resume",
        "match": "keymap",
        "open_checkpoint": "sources",
        "our_name": "keymap",
        "read_ckpt": "ckpt",
        "read_folder": "sources",
        "read_metadata": "safetensors",
        "read_safetensors": "safetensors",
        "replace_file": "atomic",
        "replace_files": "atomic",
        "save_state": "resume",
        "strip_prefix": "keymap",
        "with_prefix": "keymap",
        "write_bytes": "atomic",
        "write_ckpt": "ckpt",
        "write_folder": "folder",
        "write_json": "atomic",
        "write_safetensors": "safetensors",
        "write_text": "atomic",
    },
)
