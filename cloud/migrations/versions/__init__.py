"""One module a revision. Revisions that were released never change; a new one follows the last."""
