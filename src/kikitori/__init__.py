"""kikitori (聞き取り): fine-tune Whisper on speech, Japanese first."""

__version__ = "0.1.0"
