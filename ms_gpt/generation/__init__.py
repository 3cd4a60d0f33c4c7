"""Text out of a language model: settings, sampling, beam search, a cache of keys and values, streaming."""

from __future__ import annotations

from ms_gpt._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Chunk": "text",
        "GenerationSettings": "settings",
        "KVCache": "cache",
        "Session": "session",
        "TokenStream": "engine",
        "generate": "text",
        "stream_generate": "text",
    },
)
