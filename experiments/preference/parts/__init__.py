"""What single experiments of the family are made of."""
