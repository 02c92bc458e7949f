from fastapi import HTTPException
from fastapi.concurrency import run_in_threadpool

from app.models import User
from app.repositories import UserRepository
from app.schemas import Token, UserCreate
from app.security import (
    ACCESS_TTL,
    DUMMY_HASH,
    REFRESH_TTL,
    create_token,
    password_hash,
    read_token,
)


class AuthService:
    """Hashes in threads, so that the event loop answers other requests meanwhile."""

    def __init__(self, users: UserRepository) -> None:
        self.users = users

    async def register(self, data: UserCreate) -> User:
        if await self.users.get_by_email(data.email):
            raise HTTPException(409, "Email already registered")
        hashed = await run_in_threadpool(password_hash.hash, data.password)
        user = User(email=data.email, hashed_password=hashed, full_name=data.full_name)
        return await self.users.create(user)

    async def login(self, email: str, password: str) -> Token:
        user = await self.users.get_by_email(email)
        hashed = user.hashed_password if user else DUMMY_HASH
        valid = await run_in_threadpool(password_hash.verify, password, hashed)
        if not user or not valid:
            raise HTTPException(401, "Incorrect email or password")
        return self.create_tokens(user)

    async def refresh(self, refresh_token: str) -> Token:
        return self.create_tokens(await self.authenticate(refresh_token, "refresh"))

    async def authenticate(self, token: str, kind: str) -> User:
        user_id = read_token(token, kind)
        user = await self.users.get_by_id(user_id) if user_id else None
        if not user or not user.is_active:
            raise HTTPException(401, "Could not validate credentials")
        return user

    def create_tokens(self, user: User) -> Token:
        return Token(
            access_token=create_token(user.id, "access", ACCESS_TTL),
            refresh_token=create_token(user.id, "refresh", REFRESH_TTL),
        )
