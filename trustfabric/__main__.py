"""`python -m trustfabric` runs the runtime in the foreground, like `mcpctl serve`."""

import sys

from trustfabric.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
