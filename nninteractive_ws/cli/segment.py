"""stub"""
def segment() -> None:
    """stub"""
