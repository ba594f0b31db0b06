"""Networks run with a few quantizers on narrower rungs, choice by choice; a killed run goes on."""
