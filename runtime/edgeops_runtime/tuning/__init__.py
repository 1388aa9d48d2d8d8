"""What suits a model on this board: settings are tried in throw-away processes, the best is remembered. Begins in ``tuner``."""
