"""What a plugin's author imports: base classes, requests, dispatch, delegation."""
