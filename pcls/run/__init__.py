"""A run on disk: its folder, and the verbs that train, resume and evaluate it. The parts are put together here."""
