"""callbacks: thin: gather, de-duplicate, call one evaluation function, log."""
