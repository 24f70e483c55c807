"""Where collected static files are: each under a name with its content's hash, to be cached for ever."""

from whitenoise.storage import CompressedManifestStaticFilesStorage


class StaticStorage(CompressedManifestStaticFilesStorage):
    """Writes those names into the scripts' imports as well, so that no page mixes scripts of two versions."""

    support_js_module_import_aggregation = True
