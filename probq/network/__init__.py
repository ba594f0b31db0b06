"""The user's network gets unknown widths and codes here: it is traced, given quantizers and made a program."""
