"""``python -m fedbench``."""

from fedbench.cli import main

main()
