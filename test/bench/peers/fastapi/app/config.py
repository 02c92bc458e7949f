from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    database_url: str
    secret_key: str
    algorithm: str = "HS256"
    access_token_expire_minutes: int = 24 * 60
    refresh_token_expire_days: int = 7
    # pwdlib's defaults.
    argon2_memory: int = 65536
    argon2_time: int = 3
    argon2_threads: int = 4


settings = Settings()
