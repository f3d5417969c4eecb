"""Where bytes lie, on a local disk or behind a URL, and how they get here."""
