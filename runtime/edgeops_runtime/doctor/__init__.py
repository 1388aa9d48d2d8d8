"""What would keep a model from being served on this device: engines are tried in throw-away processes, and the rest looked over.

``advisories`` is the table of engine versions that are known to be bad; ``probe`` is the throw-away process; ``verdicts`` judges
what it said and how it ended, and remembers that; ``examiner`` starts it; ``machine`` looks at the rest; ``report`` lists it all.
"""
