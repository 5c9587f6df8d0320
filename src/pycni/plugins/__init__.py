"""One module per plugin, named as the plugin; what several share stands in `shared`."""
