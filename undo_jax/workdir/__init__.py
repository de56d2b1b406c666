"""What a workdir contains: its manifest, inventory, provenance, cleaning."""
