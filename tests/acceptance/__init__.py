"""The acceptance protocol: what is promised of files and training under kills, faults and damage, case by case."""
