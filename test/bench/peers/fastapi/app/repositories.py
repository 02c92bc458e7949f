from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Document, User


class UserRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def get_by_id(self, user_id: int) -> User | None:
        result = await self.session.execute(select(User).where(User.id == user_id))
        return result.scalar_one_or_none()

    async def get_by_email(self, email: str) -> User | None:
        result = await self.session.execute(select(User).where(User.email == email))
        return result.scalar_one_or_none()

    async def create(self, user: User) -> User:
        self.session.add(user)
        await self.session.flush()
        await self.session.refresh(user)
        return user


class DocumentRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def create(self, documents: list[Document]) -> None:
        self.session.add_all(documents)
        await self.session.flush()

    async def search(
        self, owner_id: int, embedding: list[float], limit: int
    ) -> Sequence[tuple[Document, float]]:
        distance = Document.embedding.cosine_distance(embedding).label("distance")
        result = await self.session.execute(
            select(Document, distance)
            .where(Document.owner_id == owner_id)
            .order_by(distance)
            .limit(limit)
        )
        return result.tuples().all()
