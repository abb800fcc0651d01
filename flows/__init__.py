"""Prefect flows over the stages: the only home of Prefect."""
