"""How the project runs on a Prefect server: its work pool, deployments and automations."""
