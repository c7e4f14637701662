"""Property tests run without a deadline: on a shared machine it would measure the neighbours."""

from hypothesis import settings

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
