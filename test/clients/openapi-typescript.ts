// Drives the types of openapi-typescript with openapi-fetch.

import createClient from 'openapi-fetch';
import type { paths } from './made';
import { base, check, content, email, embedding, filter, password, run } from './steps';

run(async () => {
  const api = createClient<paths>({ baseUrl: base });
  const form = (body: object) => new URLSearchParams({ ...body });
  const registered = await api.POST('/api/v1/auth/register', { body: { email, password } });
  check('register', registered.data?.email === email, registered.error);
  const json = await api.POST('/api/v1/auth/login', { body: { username: email, password } });
  check('login by JSON', json.data?.token_type === 'bearer', json.error);
  const { data: tokens, error } = await api.POST('/api/v1/auth/login', {
    body: { username: email, password }, bodySerializer: form,
    headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
  });
  check('login by form', tokens !== undefined, error);
  const refreshed = await api.POST('/api/v1/auth/refresh', {
    body: { refresh_token: tokens!.refresh_token },
  });
  check('refresh', refreshed.data !== undefined, refreshed.error);
  const headers = { Authorization: `Bearer ${refreshed.data!.access_token}` };
  const me = await api.GET('/api/v1/users/me', { headers });
  check('me', me.data?.full_name === null && !me.data.is_admin, me);
  const made = await api.POST('/api/v1/documents', {
    headers, body: { content, metadata: filter, embedding },
  });
  check('create', made.data?.content === content, made.error);
  const list = await api.GET('/api/v1/documents', {
    headers, params: { query: { filter: JSON.stringify(filter), limit: 5 } },
  });
  check('list with filter', list.data?.[0].id === made.data!.id, list.error);
  const query = { embedding, filter };
  const found = await api.POST('/api/v1/documents/search', { headers, body: query });
  check('search', found.data?.results[0].document.id === made.data!.id, found.error);
  const common = { email, password: 'password' };
  const refused = await api.POST('/api/v1/auth/register', { body: common });
  const loc = refused.error?.errors?.[0].loc.join('.');
  check('422', refused.error?.code === 'invalid_request' && loc === 'body.password', refused);
});
