"""What one optimizer step needs: module, loss, optimizer, callbacks, checkpoints."""
