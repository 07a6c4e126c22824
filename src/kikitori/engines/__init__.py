"""Other programs that transcription uses: CTranslate2, which runs exports, and silero-vad, which finds speech."""
