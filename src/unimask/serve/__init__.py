"""A page and an interface over HTTP (`unimask serve`)."""
