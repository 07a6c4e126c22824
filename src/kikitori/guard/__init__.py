"""What a fine-tuning costs elsewhere: text of silence, long recordings, timestamps, other languages."""
