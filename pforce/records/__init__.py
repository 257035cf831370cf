"""What is known: records of finished work in the storage, and how each is named. Neither Ray nor MLflow in here."""
