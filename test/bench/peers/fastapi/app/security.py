from datetime import datetime, timedelta, timezone

import jwt
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from app.config import settings

password_hash = PasswordHash(
    (
        Argon2Hasher(
            time_cost=settings.argon2_time,
            memory_cost=settings.argon2_memory,
            parallelism=settings.argon2_threads,
        ),
    )
)
# Verified for unknown e-mail addresses, so that they take as long as known ones.
DUMMY_HASH = password_hash.hash("a password that nobody has")

ACCESS_TTL = timedelta(minutes=settings.access_token_expire_minutes)
REFRESH_TTL = timedelta(days=settings.refresh_token_expire_days)


def create_token(user_id: int, kind: str, ttl: timedelta) -> str:
    claims = {"sub": str(user_id), "type": kind, "exp": datetime.now(timezone.utc) + ttl}
    return jwt.encode(claims, settings.secret_key, algorithm=settings.algorithm)


def read_token(token: str, kind: str) -> int | None:
    try:
        claims = jwt.decode(token, settings.secret_key, algorithms=[settings.algorithm])
        return int(claims["sub"]) if claims.get("type") == kind else None
    except (jwt.InvalidTokenError, KeyError, ValueError):
        return None
