"""What a plugin author imports: plugin base class, typed config, request, dispatch, delegation."""
