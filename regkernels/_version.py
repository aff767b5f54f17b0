"""Says which version is installed. The build takes it from the tag of the commit, so that it is written down nowhere."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("regkernels")
except PackageNotFoundError:  # sources on the path that nobody has installed
    __version__ = "0+unknown"
