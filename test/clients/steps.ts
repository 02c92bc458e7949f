// What the drivers in TypeScript share. A failed check ends the driver.

declare const process: { env: Record<string, string>; exit(status: number): never };

export const base = process.env.BASE;
export const email = `${process.env.DRIVER}@example.com`;
export const password = 'correct horse battery';
export const content = 'Ada wrote the first program.';
export const filter = { lang: 'en' };

// 384 numbers are the default of EMBEDDING_DIMENSIONS.
export const embedding = Array.from({ length: 384 }, (_, i) => Math.sin(i + 1));

export function check(what: string, ok: boolean, got?: unknown) {
  console.log(ok ? 'works:' : 'FAILS:', what, ok ? '' : got);
  if (!ok) process.exit(1);
}

export function run(main: () => Promise<void>) {
  main().catch((error) => check('no exception', false, error));
}
