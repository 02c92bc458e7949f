"""Creates the tables: python -m app.tables"""

import asyncio

from sqlalchemy import text

from app.database import Base, engine
from app.models import Document, User

TABLES = [User.__table__, Document.__table__]


async def main() -> None:
    async with engine.begin() as conn:
        await conn.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        await conn.run_sync(Base.metadata.create_all, tables=TABLES)
    await engine.dispose()


asyncio.run(main())
