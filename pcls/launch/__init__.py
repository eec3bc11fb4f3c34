"""Starting recipes elsewhere, or here under supervision: what would run is a pure function of what was asked for."""
