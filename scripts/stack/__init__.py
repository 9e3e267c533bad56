"""What the scripts share: the processes of one installation on one machine."""
