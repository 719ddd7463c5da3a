"""How good a trained bundle is, against simple rivals: what `queryrec-train evaluate` computes."""
