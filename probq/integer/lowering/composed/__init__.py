"""Operations of a network that are several operations in integers are made of those here."""
