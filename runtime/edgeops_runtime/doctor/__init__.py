"""What would keep a model from being served on this device: engines are tried in throw-away processes, the machine is looked over.

``advisories`` is the table of engine versions that are known to be bad; ``probe`` is the throw-away process; ``verdicts`` judges what it said
and how it ended, and remembers that; ``examiner`` starts it; ``machine`` looks at the rest; ``report`` makes one list of it all.
"""
