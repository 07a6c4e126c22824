"""Adapters: small trained matrices next to frozen linear layers."""
