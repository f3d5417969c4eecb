"""AMSPS: active mining of sample pair semantics (arXiv 2311.05425), on the consensus-aware embedding of CVSE."""
