"""Every row of the table of faults: what breaks, and what a caller and the system must see then."""
