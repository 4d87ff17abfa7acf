"""Runs `outrider-cloud` as `python -m cloud_server`."""

import sys

from cloud_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
