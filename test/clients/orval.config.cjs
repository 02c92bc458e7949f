const input = process.env.DOCUMENT;

module.exports = {
  fetch: { input, output: { mode: 'split', client: 'fetch', target: 'made/latch.ts',
    schemas: 'made/model', baseUrl: process.env.BASE } },
  zod: { input, output: { client: 'zod', target: 'made/zod.ts' } },
};
