"""The default corpus: scenes of coloured shapes, and the oracle that reads them."""
