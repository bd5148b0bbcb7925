"""What a bug report needs, in one archive and without what nobody may see: ``crdt-merge-node bundle``.

``collecting.py`` asks the daemon and looks at the machine, ``redaction.py`` takes secrets, paths and, if
asked to, names out, ``archive.py`` writes it with a list of what is in it. Key files are read for one
purpose: to make sure that nothing of them is in the archive.
"""

from .archive import Bundled, write_bundle
from .collecting import Piece, Source, collect
from .redaction import Redactor

__all__ = ["Bundled", "Piece", "Redactor", "Source", "collect", "write_bundle"]
