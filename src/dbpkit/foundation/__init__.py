"""What the other rooms stand on: noise, registry, specs, files, errors. No room is imported from here."""
