"""What transcribes besides torch: exports that CTranslate2 runs, and silero-vad, which finds speech."""
